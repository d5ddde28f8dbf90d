"""TRL's trainers with the settings of a stage: the second implementation. Nothing else imports trl."""
