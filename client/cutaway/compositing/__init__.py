"""The parts of :mod:`cutaway.composite`: placing, backgrounds, layers and colour match, each pure pixel work."""
