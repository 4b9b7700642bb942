"""What programs run on: the machine and its tier, the disk, this process and its end, progress without a terminal."""
