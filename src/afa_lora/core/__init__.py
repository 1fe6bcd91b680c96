"""The paper in torch alone: Eq. 1-6 and Algorithm 1 of AFA-LoRA (arXiv 2512.22455). Imports torch and nothing else."""
