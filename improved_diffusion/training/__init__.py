"""What a training is made of: weights, checkpoints, signals, previews."""
