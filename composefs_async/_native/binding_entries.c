/* The function of composefs_async._native._core that reads members back out of stored layers; see binding.c.
 *
 * It keeps the interpreter lock: it makes objects, half a microsecond for each. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <string.h>

#include "binding.h"
#include "members.h"

#define BLOCK 512

/* An int, and its value: the next member has the same one as often as not. */
struct number {
    PyObject *object;
    uint64_t value;
};

struct reading {
    PyObject *body, *entries, *object_type, *make, *entry_type, *types; /* borrowed */
    PyObject *empty, *none;                                              /* of bytes, and of attributes */
    struct number mode, uid, gid, mtime;
    Py_ssize_t index, at; /* of the chunk, and the place in it */
    int64_t base;         /* of the chunk, in the archive */
};

/* A reference of the caller's. */
static PyObject *number_of(struct number *last, uint64_t value, uint64_t scale)
{
    if (!last->object || last->value != value) {
        PyObject *made = PyLong_FromUnsignedLongLong(value * scale);
        if (!made)
            return NULL;
        Py_XDECREF(last->object);
        *last = (struct number){made, value};
    }
    return Py_NewRef(last->object);
}

static PyObject *stripped(const uint8_t *text, size_t size)
{
    while (size && text[0] == '/')
        text++, size--;
    while (size && text[size - 1] == '/')
        size--;
    return PyBytes_FromStringAndSize((const char *)text, (Py_ssize_t)size);
}

static PyObject *path_of(const struct member *member)
{
    uint8_t joined[MEMBER_PREFIX + 1 + MEMBER_NAME];

    if (!member->prefix_size)
        return stripped(member->name, member->name_size);
    memcpy(joined, member->prefix, member->prefix_size);
    joined[member->prefix_size] = '/';
    memcpy(joined + member->prefix_size + 1, member->name, member->name_size);
    return stripped(joined, member->prefix_size + 1 + member->name_size);
}

static PyObject *link_of(const struct reading *reading, const struct member *member)
{
    if (member->type == MEMBER_HARDLINK)
        return stripped(member->link, member->link_size);
    if (member->type == MEMBER_SYMLINK)
        return PyBytes_FromStringAndSize((const char *)member->link, (Py_ssize_t)member->link_size);
    return Py_NewRef(reading->empty);
}

/* Takes *content* over.  In the order of the fields of TarEntry. */
static int append_entry(struct reading *reading, const struct member *member, PyObject *content)
{
    PyObject *fields = PyTuple_New(12), *entry = NULL;
    PyObject *const values[] = {
        path_of(member),
        Py_XNewRef(PyTuple_GetItem(reading->types, member->type)),
        number_of(&reading->mode, member->mode, 1),
        number_of(&reading->uid, member->uid, 1),
        number_of(&reading->gid, member->gid, 1),
        PyLong_FromUnsignedLongLong(member->size),
        number_of(&reading->mtime, member->mtime, 1000000000),
        PyLong_FromLong(0),
        link_of(reading, member),
        Py_NewRef(reading->none),
        content,
        PyLong_FromLongLong(reading->base + reading->at),
    };
    int status = -1;

    for (int i = 0; i < 12; i++) {
        if (!fields || !values[i] || PyErr_Occurred())
            Py_XDECREF(values[i]);
        else
            PyTuple_SetItem(fields, i, values[i]);
    }
    if (fields && !PyErr_Occurred())
        entry = PyObject_CallFunctionObjArgs(reading->make, reading->entry_type, fields, NULL);
    if (entry)
        status = PyList_Append(reading->entries, entry);
    Py_XDECREF(fields);
    Py_XDECREF(entry);
    return status;
}

/* The object in the next chunk, which is the content of a large file; NULL if there is none. */
static PyObject *object_after(const struct reading *reading)
{
    PyObject *next = reading->index + 1 < PyList_Size(reading->body)
                         ? PyList_GetItem(reading->body, reading->index + 1)
                         : NULL;

    return next && (PyObject *)Py_TYPE(next) == reading->object_type ? next : NULL;
}

/* Returns 1 if a member was read, 0 if it is not for this function, -1 with an exception. */
static int read_one(struct reading *reading, const uint8_t *data, Py_ssize_t size)
{
    const Py_ssize_t content = reading->at + BLOCK;
    struct member member;
    PyObject *object;

    if (!member_parse(&member, data + reading->at))
        return 0;
    if (member.type != MEMBER_FILE) {
        if (append_entry(reading, &member, Py_NewRef(Py_None)))
            return -1;
        reading->at = content;
        return 1;
    }
    if (member.size > MEMBER_INLINE_MAX) {
        object = content == size ? object_after(reading) : NULL;
        if (!object)
            return 0;
        if (append_entry(reading, &member, Py_NewRef(object)))
            return -1;
        reading->base += size + (int64_t)member.size;
        reading->index += 2;
        reading->at = (Py_ssize_t)(-member.size & (BLOCK - 1));
        return 1;
    }
    if (content + (Py_ssize_t)member.size > size)
        return 0;
    object = PyBytes_FromStringAndSize((const char *)data + content, (Py_ssize_t)member.size);
    if (append_entry(reading, &member, object))
        return -1;
    reading->at = content + (member.size ? BLOCK : 0);
    return 1;
}

static int read_all(struct reading *reading)
{
    int status = 1;

    while (status == 1 && reading->index < PyList_Size(reading->body)) {
        PyObject *chunk = PyList_GetItem(reading->body, reading->index);
        const Py_ssize_t size = PyBytes_Size(chunk);
        const uint8_t *data;
        if (size < 0) { /* some other buffer */
            PyErr_Clear();
            return 0;
        }
        if ((PyObject *)Py_TYPE(chunk) == reading->object_type || reading->at > size || size - reading->at < BLOCK)
            return 0;
        data = (const uint8_t *)PyBytes_AsString(chunk);
        status = read_one(reading, data, size);
    }
    return status;
}

PyObject *core_read_members(PyObject *module, PyObject *args)
{
    struct reading reading = {0};
    PyObject *result = NULL;
    long long base;

    (void)module;
    if (!PyArg_ParseTuple(args, "O!nnLO!OOOO!:read_members", &PyList_Type, &reading.body, &reading.index, &reading.at,
                          &base, &PyList_Type, &reading.entries, &reading.object_type, &reading.make,
                          &reading.entry_type, &PyTuple_Type, &reading.types))
        return NULL;
    if (reading.index < 0 || reading.at < 0) {
        PyErr_SetString(PyExc_ValueError, "positions are not negative");
        return NULL;
    }
    reading.base = base;
    reading.empty = PyBytes_FromStringAndSize(NULL, 0);
    reading.none = PyTuple_New(0);
    if (reading.empty && reading.none && read_all(&reading) >= 0)
        result = Py_BuildValue("nnL", reading.index, reading.at, (long long)reading.base);
    Py_XDECREF(reading.empty);
    Py_XDECREF(reading.none);
    Py_XDECREF(reading.mode.object);
    Py_XDECREF(reading.uid.object);
    Py_XDECREF(reading.gid.object);
    Py_XDECREF(reading.mtime.object);
    return result;
}
