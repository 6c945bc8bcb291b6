"""Deep LoRA: W_0 + F_L ... F_1, its L factors started small and (semi-)orthogonal, compressed by the first gradient.

config.py -> start.py (factors) -> layer.py (one layer) -> model.py (the PEFT tuner) -> calibration.py (first gradient);
rates.py (learning rates), combination.py (sums of adapters), export.py (plain LoRA).
Yaras, Wang, Balzano & Qu 2024, arXiv 2406.04112.
"""
