// SPDX-License-Identifier: GPL-2.0
/* flush.c once more; it must come first in its file. */
#include "../rust/sys/shim/flush.c"
