"""One module per figure; the folder is the registry. python -m figures lists, computes, checks and draws them."""
