"""Fusion in a browser: the page and its server, and views of images for notebooks.

`page/` holds the sources of the page, JavaScript with a lock file of its packages. `building` builds it with npm,
`site` makes a folder or one HTML file of it and a network, `server` serves it to this computer.
"""
