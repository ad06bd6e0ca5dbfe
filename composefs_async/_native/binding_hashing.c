/* The functions of composefs_async._native._core that hash two streams in step; see binding.c. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "binding.h"
#include "sha256_pair.h"

#define PIECES 64

/* The two streams are the caller's, in an object that can be written to. */
static struct sha256_stream *streams_of(Py_buffer *view)
{
    if (view->len == 2 * sizeof(struct sha256_stream))
        return view->buf;
    PyErr_Format(PyExc_ValueError, "%zd bytes are not the state of two streams", view->len);
    return NULL;
}

PyObject *core_sha256_pair(PyObject *module, PyObject *args)
{
    struct sha256_stream streams[2];

    (void)module;
    if (!PyArg_ParseTuple(args, ":sha256_pair"))
        return NULL;
    if (!sha256_pair_usable())
        return Py_NewRef(Py_None);
    sha256_pair_begin(streams);
    return PyByteArray_FromStringAndSize((const char *)streams, sizeof streams);
}

static int run_update(struct sha256_stream *streams, PyObject *pieces, const Py_buffer *other)
{
    struct sha256_piece items[PIECES], last = {other->buf, (size_t)other->len};
    Py_ssize_t count = PySequence_Size(pieces), held = 0;
    Py_buffer views[PIECES];

    if (count > PIECES)
        PyErr_Format(PyExc_ValueError, "more than %d pieces", PIECES);
    while (!PyErr_Occurred() && held < count) {
        PyObject *piece = PySequence_GetItem(pieces, held);
        if (piece && PyObject_GetBuffer(piece, &views[held], PyBUF_SIMPLE) == 0) {
            items[held] = (struct sha256_piece){views[held].buf, (size_t)views[held].len};
            held++;
        }
        Py_XDECREF(piece);
    }
    if (!PyErr_Occurred()) {
        Py_BEGIN_ALLOW_THREADS
        sha256_pair_update(streams, items, (size_t)held, last);
        Py_END_ALLOW_THREADS
    }
    while (held)
        PyBuffer_Release(&views[--held]);
    return PyErr_Occurred() ? -1 : 0;
}

PyObject *core_sha256_pair_update(PyObject *module, PyObject *args)
{
    struct sha256_stream *streams;
    Py_buffer state, other;
    PyObject *pieces;
    int status = -1;

    (void)module;
    if (!PyArg_ParseTuple(args, "w*Oy*:sha256_pair_update", &state, &pieces, &other))
        return NULL;
    streams = streams_of(&state);
    if (streams)
        status = run_update(streams, pieces, &other);
    PyBuffer_Release(&state);
    PyBuffer_Release(&other);
    return status ? NULL : Py_NewRef(Py_None);
}

PyObject *core_sha256_pair_digests(PyObject *module, PyObject *args)
{
    const struct sha256_stream *streams;
    uint8_t digests[2][32];
    Py_buffer state;

    (void)module;
    if (!PyArg_ParseTuple(args, "w*:sha256_pair_digests", &state))
        return NULL;
    streams = streams_of(&state);
    if (streams)
        for (int i = 0; i < 2; i++)
            sha256_stream_digest(&streams[i], digests[i]);
    PyBuffer_Release(&state);
    return streams ? Py_BuildValue("y#y#", (const char *)digests[0], (Py_ssize_t)32, (const char *)digests[1],
                                   (Py_ssize_t)32)
                   : NULL;
}
