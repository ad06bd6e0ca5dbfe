/* The function of composefs_async._native._core that cuts archives; see binding.c.
 *
 * It keeps the interpreter lock: it takes about a tenth of a millisecond and mostly makes objects. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "binding.h"
#include "members.h"

#define ROOM 4096

/* Appends (kind, begin, end). */
static int append_item(PyObject *items, int kind, size_t begin, size_t end)
{
    PyObject *item = Py_BuildValue("inn", kind, (Py_ssize_t)begin, (Py_ssize_t)end);
    int status = item ? PyList_Append(items, item) : -1;

    Py_XDECREF(item);
    return status;
}

static int append_files(PyObject *items, const struct members *members, size_t *inside)
{
    for (size_t i = 0; i < members->count; i++) {
        const struct members_range *file = &members->files[i];
        if (append_item(items, 0, *inside, file->begin) || append_item(items, 1, file->begin, file->end))
            return -1;
        *inside = file->end;
    }
    return 0;
}

PyObject *core_split_members(PyObject *module, PyObject *args)
{
    struct members_range files[ROOM];
    struct members members = {.files = files, .room = ROOM};
    Py_ssize_t at, from, file_max;
    PyObject *items, *result = NULL;
    size_t inside;
    Py_buffer view;

    (void)module;
    if (!PyArg_ParseTuple(args, "y*nnnO:split_members", &view, &at, &from, &file_max, &items))
        return NULL;
    if (at < 0 || from < 0 || file_max < 0) {
        PyErr_SetString(PyExc_ValueError, "positions and sizes are not negative");
    } else {
        members.data = view.buf;
        members.size = (size_t)view.len;
        members.at = (size_t)at;
        members.file_max = (size_t)file_max;
        inside = (size_t)from;
        do {
            members.count = 0;
            members_pass(&members);
            if (append_files(items, &members, &inside))
                break;
        } while (members.count == ROOM);
        if (!PyErr_Occurred())
            result = Py_BuildValue("nn", (Py_ssize_t)members.at, (Py_ssize_t)inside);
    }
    PyBuffer_Release(&view);
    return result;
}
