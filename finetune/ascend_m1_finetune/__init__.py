"""Fine-tuning of Baichuan-M1: recipes, and the model's own methods as parts to use alone."""
