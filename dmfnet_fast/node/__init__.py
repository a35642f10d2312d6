"""A DICOM node: receives studies, fuses what its rules name, and sends the results on.

Needs the extra `pacs`. `service.Node` runs it; the command is `dmfnet-node`.
"""
