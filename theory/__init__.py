"""What is proved: numpy and sympy in float64, no torch, no files. Start with README.md."""
