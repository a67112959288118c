"""Models, their processors and tasks, from a hub id, a folder or timm."""
