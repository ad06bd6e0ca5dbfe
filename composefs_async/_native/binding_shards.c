/* The functions of composefs_async._native._core that look after the directories of objects; see binding.c. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <string.h>

#include "binding.h"
#include "shards.h"

static int check_width(const Py_buffer *view, int width)
{
    if ((width == 32 || width == 64) && view->len % width == 0)
        return 0;
    PyErr_Format(PyExc_ValueError, "%zd bytes are no ids of %d bytes", view->len, width);
    return -1;
}

PyObject *core_sort_ids(PyObject *module, PyObject *args)
{
    PyObject *sorted = NULL, *result = NULL;
    Py_buffer view;
    int width;

    (void)module;
    if (!PyArg_ParseTuple(args, "y*i:sort_ids", &view, &width))
        return NULL;
    if (check_width(&view, width) == 0 && (sorted = PyBytes_FromStringAndSize(view.buf, view.len))) {
        char *data = PyBytes_AsString(sorted);
        size_t count = (size_t)(view.len / width), kept;
        Py_BEGIN_ALLOW_THREADS
        kept = shards_sort((uint8_t *)data, count, (size_t)width);
        Py_END_ALLOW_THREADS
        /* Nobody else has seen it yet, but shortening it in place is not in the limited API. */
        result = kept == count ? Py_NewRef(sorted) : PyBytes_FromStringAndSize(data, (Py_ssize_t)kept * width);
    }
    Py_XDECREF(sorted);
    PyBuffer_Release(&view);
    return result;
}

static PyObject *bytes_of(const struct shards_buffer *buffer)
{
    return PyBytes_FromStringAndSize((const char *)buffer->data, (Py_ssize_t)buffer->size);
}

static PyObject *others_of(const struct shards_buffer *buffer)
{
    PyObject *list = PyList_New(0);

    for (size_t at = 0; list && at < buffer->size;) {
        const char *name = (const char *)buffer->data + at + sizeof(uint32_t);
        uint32_t mode;
        PyObject *each;
        memcpy(&mode, buffer->data + at, sizeof mode);
        each = Py_BuildValue("yI", name, (unsigned)mode);
        if (!each || PyList_Append(list, each))
            Py_CLEAR(list);
        Py_XDECREF(each);
        at += sizeof mode + strlen(name) + 1;
    }
    return list;
}

PyObject *core_compare_shard(PyObject *module, PyObject *args)
{
    struct shards_listing listing = {0};
    PyObject *result = NULL;
    Py_buffer view;
    long long since;
    unsigned shard;
    int objects, width, status;

    (void)module;
    if (!PyArg_ParseTuple(args, "iIy*iL:compare_shard", &objects, &shard, &view, &width, &since))
        return NULL;
    if (check_width(&view, width) == 0) {
        Py_BEGIN_ALLOW_THREADS
        status = shards_compare(&listing, objects, shard, view.buf, (size_t)(view.len / width), (size_t)width, since);
        Py_END_ALLOW_THREADS
        if (status < 0)
            PyErr_NoMemory();
        else
            result = Py_BuildValue("inNNNN", status, (Py_ssize_t)listing.matched, bytes_of(&listing.dead),
                                   bytes_of(&listing.sizes), bytes_of(&listing.young), others_of(&listing.others));
    }
    shards_free(&listing);
    PyBuffer_Release(&view);
    return result;
}

PyObject *core_remove_objects(PyObject *module, PyObject *args)
{
    PyObject *statuses = NULL, *result = NULL;
    Py_buffer view;
    int objects, width, error;

    (void)module;
    if (!PyArg_ParseTuple(args, "iy*i:remove_objects", &objects, &view, &width))
        return NULL;
    if (check_width(&view, width) == 0 && (statuses = PyBytes_FromStringAndSize(NULL, view.len / width))) {
        uint8_t *out = (uint8_t *)PyBytes_AsString(statuses);
        size_t done;
        Py_BEGIN_ALLOW_THREADS
        done = shards_remove(objects, view.buf, (size_t)(view.len / width), (size_t)width, out, &error);
        Py_END_ALLOW_THREADS
        result = Py_BuildValue("y#i", (const char *)out, (Py_ssize_t)done, error);
    }
    Py_XDECREF(statuses);
    PyBuffer_Release(&view);
    return result;
}
