"""Keeps objects whole: survey, repair, custody, drain."""
