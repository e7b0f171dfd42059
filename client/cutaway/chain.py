"""Until the last import of it is gone: see :mod:`cutaway.fallback.chain`."""

from cutaway.fallback.chain import NeedsDetection as NeedsDetection
from cutaway.fallback.chain import NobodyServed as NobodyServed
from cutaway.fallback.chain import Served as Served
from cutaway.fallback.chain import Tried as Tried
