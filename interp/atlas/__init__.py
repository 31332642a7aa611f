"""The atlas: a folder with every feature, its exemplars, scores and steering examples, that a browser opens.

`gathering` reads the stages' files, `build` writes the data in chunks and `page` the page that loads them (its styles
and scripts are in `web`), `figures` draws figures for a publication, `disclosure` decides what is told of studies, and
`stage` runs all of it.
"""
