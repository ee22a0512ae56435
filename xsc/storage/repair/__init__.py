"""Keeps objects whole: survey, repair, renewal, custody, drain."""
