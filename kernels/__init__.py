"""Numeric primitives: plain torch functions that know nothing of models, pictures or graphs."""
