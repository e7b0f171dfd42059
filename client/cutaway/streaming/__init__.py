"""A video's frames through a server: what threads and asyncio share stands in `course`, what callers hold in `stream`
and `async_stream`."""
