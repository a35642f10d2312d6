"""Volumes: DICOM series and NIfTI files in, aligned by their geometry."""
