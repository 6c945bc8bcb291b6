"""Speed and memory of training steps against named peers: ./run bench."""
