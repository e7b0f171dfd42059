"""Exit codes and environment variables of the command, as its help shows them."""

from __future__ import annotations

URL_VARIABLE = "CUTAWAY_URL"
RATIO_VARIABLE = "CUTAWAY_MAX_DECOMPRESSION_RATIO"
TOKEN_VARIABLE = "CUTAWAY_TOKEN"  # noqa: S105 (a variable's name)
API_KEY_VARIABLE = "CUTAWAY_API_KEY"

OK, FAILED, USAGE, UNAVAILABLE, INTERRUPTED, TERMINATED = 0, 1, 2, 3, 130, 143

EPILOG = f"""exit codes:
  {OK}    everything worked, or was done earlier
  {FAILED}    a picture failed, or was done earlier in another way; others were done.
       Or another run is at work in the output folder, or standard output
       cannot be written
  {USAGE}    the command line makes no sense, or names no picture
  {UNAVAILABLE}    the server is not there or does not work; pictures that were left
       were not tried
  {INTERRUPTED}  interrupted; what was done is kept, and the same command goes on
  {TERMINATED}  the same, by SIGTERM

environment:
  {URL_VARIABLE}
      the server's address where --url is not given; several with commas
  {TOKEN_VARIABLE}, {API_KEY_VARIABLE}
      shown to the server as "Authorization: Bearer …" and as "X-API-Key: …"
  HUGGINGFACE_TOKEN or HF_TOKEN, REPLICATE_API_TOKEN
      for the hosted models that --fallback names
  {RATIO_VARIABLE}
      the largest decompression ratio, where the server's operator raised it
"""
