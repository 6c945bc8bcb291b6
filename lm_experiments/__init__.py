"""Real models and real data. So far: the MovieLens-100K ratings; language models follow."""
