/* A call of the kernel made again for as long as a signal interrupts it, as network and user-space file systems have it
 * even for calls that a local one never interrupts. */

#ifndef COMPOSEFS_RETRY_H
#define COMPOSEFS_RETRY_H

#include <errno.h>

#define RETRY(call)                                   \
    ({                                                \
        __typeof__(call) result_;                     \
        do                                            \
            result_ = (call);                         \
        while (result_ < 0 && errno == EINTR);        \
        result_;                                      \
    })

#endif
