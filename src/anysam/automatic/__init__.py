"""Everything mode: all masks of an image, without prompts from outside.

everything.py      which way a model finds all masks, tiles around it, and what is made of the masks
options.py         what can be asked for, checked; presets.py: options by name
interface.py       what a model must offer; decoding.py: how a promptable network does; working_memory.py: what it takes

The grid of points: grid_mode.py the order of work, grids.py points and crops, candidates.py what is kept of each point,
regions.py, extents.py and operators.py boxes and stability at low resolution, filters.py as published,
levels.py whole, part and subpart, span_regions.py small holes and islands.

The other ways: instances.py objects found in one pass, boxes.py a mask for each box or point.

Large images: tiles.py overlapping tiles, tile_pieces.py which masks of tiles are one object. What is made of the masks:
refine.py, panoptic.py.
"""
