"""What every stage needs: its record, its clock and progress, its command line, the mirror into MLflow."""
