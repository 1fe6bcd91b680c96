"""What the workflows that train by a recipe have in common: its sections, model, adapter, folder, failures, end."""
