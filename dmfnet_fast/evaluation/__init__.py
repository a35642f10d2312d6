"""Evaluation of fusion methods: runs them on pairs of images, scores and compares the results, and writes reports."""
