"""Training: Trainer and TRL's SFTTrainer, losses, several processes, and what a run saves meanwhile."""
