"""What a Gaussian diffusion is made of: schedules, targets, loss weights, the walk of a sampler."""
