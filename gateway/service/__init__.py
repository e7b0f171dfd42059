"""The HTTP service: background removal, people, a drop-in for remove.bg, jobs, keys and limits, and the page."""
