"""Real models and real data. So far: the MovieLens-100K ratings and Fashion-MNIST; language models follow."""
