"""Exit codes and environment variables of the command, as its help shows them."""

URL_VARIABLE = "CUTAWAY_URL"
RATIO_VARIABLE = "CUTAWAY_MAX_DECOMPRESSION_RATIO"
TOKEN_VARIABLE = "CUTAWAY_TOKEN"  # noqa: S105 (a variable's name)
API_KEY_VARIABLE = "CUTAWAY_API_KEY"

OK, FAILED, USAGE, UNAVAILABLE, INTERRUPTED, TERMINATED = 0, 1, 2, 3, 130, 143

EPILOG = f"""\b
Exit codes:
{OK}    everything worked, or was there already
{FAILED}    a picture failed, others were done; or standard output is lost
{USAGE}    the command line makes no sense, or names no picture
{UNAVAILABLE}    a server does not work; pictures left were not tried
{INTERRUPTED}  interrupted; what is done is kept, the same command goes on
{TERMINATED}  the same, by SIGTERM

\b
Environment:
{TOKEN_VARIABLE}, {API_KEY_VARIABLE}  sent as bearer token, and as X-API-Key
HUGGINGFACE_TOKEN or HF_TOKEN, REPLICATE_API_TOKEN  for --fallback

\b
Completion, one line in your shell's start-up file:
bash  eval "$(_CUTAWAY_COMPLETE=bash_source cutaway)"
zsh   eval "$(_CUTAWAY_COMPLETE=zsh_source cutaway)"
fish  _CUTAWAY_COMPLETE=fish_source cutaway | source
"""
