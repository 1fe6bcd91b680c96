"""The paper's tables and figures: arms × seeds from one file, trained, tested and reported."""
