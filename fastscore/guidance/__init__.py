"""Control: a score given a class or a measurement, made of a score given nothing.

Everything conditional is the same samplers with another score, score(x) + grad log p(y | x).
"""
