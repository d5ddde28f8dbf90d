#!/usr/bin/env bash
# A Slurm cluster of two nodes, n1 and n2, on this host: for trying a study through the real thing. As root, with Debian's
# slurm-wlm and munge:
#     tests/cluster/slurm.sh start          two nodes of 2 cores and 6 GB, without GPUs and accounting
#     tests/cluster/slurm.sh start gpu      as if each node had a GPU: what Slurm hands out is /dev/null
#     tests/cluster/slurm.sh kill n2        as if the node lost its power: its daemon and its jobs' processes are gone
#     tests/cluster/slurm.sh revive n2
#     sbatch -p urgent -N 2 --exclusive --wrap 'sleep 30'     preempts what runs: SIGTERM, and 60 s until SIGKILL
#     tests/cluster/slurm.sh stop
# The configuration must lie in /etc/slurm: the plugin takes SLURM_CONF out of the jobs' environment.
set -euo pipefail
state=/var/lib/slurm-of-two-nodes
conf=/etc/slurm/slurm.conf
host=$(hostname -s)

configure() {
    if [ -e $conf ] && ! grep -q "ClusterName=twonodes" $conf; then
        echo "error: $conf is of another cluster; this script would replace it." >&2
        exit 2
    fi
    mkdir -p $state/ctld /etc/slurm
    rm -f /etc/slurm/gres.conf
    if [ "$1" = gpu ]; then echo "Name=gpu File=/dev/null" > /etc/slurm/gres.conf; fi
    cat > $conf <<CONF
ClusterName=twonodes
SlurmctldHost=$host
SlurmUser=root
StateSaveLocation=$state/ctld
SlurmdSpoolDir=$state/%n
SlurmctldPidFile=$state/ctld.pid
SlurmdPidFile=$state/%n.pid
SlurmctldLogFile=$state/ctld.log
SlurmdLogFile=$state/%n.log
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
JobAcctGatherType=jobacct_gather/none
ReturnToService=2
SlurmdTimeout=20
MinJobAge=600
${1:+GresTypes=gpu}
NodeName=n1 NodeHostname=$host Port=17001 CPUs=2 RealMemory=6000 ${1:+Gres=gpu:1}
NodeName=n2 NodeHostname=$host Port=17002 CPUs=2 RealMemory=6000 ${1:+Gres=gpu:1}
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=main Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=60
PartitionName=urgent Nodes=n1,n2 MaxTime=INFINITE State=UP PriorityTier=2 PreemptMode=OFF
CONF
}

start() {
    configure "$1"
    if ! munge -n > /dev/null 2>&1; then
        mkdir -p /run/munge && chown munge: /run/munge
        runuser -u munge -- munged
    fi
    running ctld || slurmctld
    for node in n1 n2; do revive $node; done
    for _ in $(seq 60); do
        [ "$(sinfo -h -o %T 2> /dev/null | sort -u)" = idle ] && break
        sleep 1
    done
    sinfo -N
}

running() {
    [ -e $state/$1.pid ] && kill -0 "$(cat $state/$1.pid)" 2> /dev/null
}

revive() {
    mkdir -p $state/$1
    running $1 || slurmd -N $1
}

# The daemon first, so that it reports nothing; then the processes of its jobs, each with all that it started.
kill_node() {
    jobs=$(squeue -h -w $1 -t R -o %A)
    kill -9 "$(cat $state/$1.pid)"
    for job in $jobs; do
        for step in $(pgrep -f "slurmstepd: \[$job\."); do
            if [ -e /proc/$step ]; then kill -9 $(descendants $step) 2> /dev/null || true; fi
        done
    done
}

descendants() {
    echo $1
    for child in $(pgrep -P $1); do descendants $child; done
}

stop() {
    scancel --state=PENDING --state=RUNNING -p main,urgent 2> /dev/null || true
    sleep 2
    for daemon in n1 n2 ctld; do
        if running $daemon; then kill "$(cat $state/$daemon.pid)"; fi
    done
    rm -f $conf /etc/slurm/gres.conf
}

case ${1:-} in
    start) start "${2:-}" ;;
    kill) kill_node "$2" ;;
    revive) revive "$2" ;;
    stop) stop ;;
    *) sed -n '2,10s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
esac
