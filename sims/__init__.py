"""What is watched: gradient descent as it is, run without knowing what theory predicts."""
