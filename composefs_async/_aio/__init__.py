"""The only place that knows there is an event loop: thread hops, coalescing, handles.

Thread work is never abandoned: a cancelled caller waits for the hop that is under way, which is why batches
are short.  Nobody holds a token of the write semaphore while awaiting anything but the hop it is for.
"""
