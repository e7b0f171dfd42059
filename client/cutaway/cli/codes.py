"""Exit codes and environment variables of the command, as its help shows them."""

URL_VARIABLE = "CUTAWAY_URL"
RATIO_VARIABLE = "CUTAWAY_MAX_DECOMPRESSION_RATIO"
TOKEN_VARIABLE, API_KEY_VARIABLE = "CUTAWAY_TOKEN", "CUTAWAY_API_KEY"

OK, FAILED, USAGE, UNAVAILABLE, INTERRUPTED = 0, 1, 2, 3, 130

EPILOG = f"""\b
Exit codes:
{OK}    everything worked, or was there already
{FAILED}    a picture failed, others were done; or standard output is lost
{USAGE}    the command line makes no sense, or names no picture
{UNAVAILABLE}    a server does not work; pictures left were not tried
{INTERRUPTED}  interrupted; what is done is kept, the same command goes on

\b
{TOKEN_VARIABLE}, {API_KEY_VARIABLE}  sent as bearer token, and as X-API-Key
HUGGINGFACE_TOKEN or HF_TOKEN, REPLICATE_API_TOKEN  for --fallback

\b
Completion: eval "$(_CUTAWAY_COMPLETE=bash_source cutaway)" in your shell's start-up
file, or zsh_source; in fish: _CUTAWAY_COMPLETE=fish_source cutaway | source
"""
