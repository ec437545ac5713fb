"""Train Stable-Baselines3 learners on rewards that a model reads off the camera."""
