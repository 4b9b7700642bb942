"""Training: Trainer and TRL's SFTTrainer, losses, several processes, and the state that --resume needs."""
