"""Data, tokenizer and evaluation of m1-icd10, the small checkpoint that ships with the project."""
