/* The function of composefs_async._native._core that looks at files by their names; see binding.c. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "binding.h"
#include "scanning.h"

#define ATTRIBUTES ((size_t)1 << 17) /* bytes in a call; files whose attributes do not fit are left to the caller */
#define INLINE_MAX 4096

struct files {
    PyObject *names; /* a tuple, which holds the strings */
    size_t count;
    int *directories;
    const char **paths;
};

static void files_release(struct files *files)
{
    PyMem_Free(files->directories);
    PyMem_Free(files->paths);
    Py_XDECREF(files->names);
}

static int files_add(struct files *files, PyObject *fds, Py_ssize_t index)
{
    PyObject *fd = PySequence_GetItem(fds, index);
    long value = fd ? PyLong_AsLong(fd) : -1;
    char *path;

    Py_XDECREF(fd);
    if (value == -1 && PyErr_Occurred())
        return -1;
    /* Without the length it refuses NUL bytes. */
    if (PyBytes_AsStringAndSize(PyTuple_GetItem(files->names, index), &path, NULL))
        return -1;
    /* One that cannot be a descriptor gets EBADF from the kernel like any other wrong one. */
    files->directories[index] = value < 0 || value > INT_MAX ? -1 : (int)value;
    files->paths[index] = path;
    return 0;
}

/* Returns -1 with an exception; the files are to be released in any case. */
static int files_acquire(struct files *files, PyObject *fds, PyObject *names)
{
    Py_ssize_t count;

    files->names = PySequence_Tuple(names);
    if (!files->names)
        return -1;
    count = PyTuple_Size(files->names);
    if (PySequence_Size(fds) != count) {
        if (!PyErr_Occurred())
            PyErr_SetString(PyExc_ValueError, "there is not one directory for each name");
        return -1;
    }
    files->count = (size_t)count;
    files->directories = PyMem_Calloc(files->count + 1, sizeof *files->directories);
    files->paths = PyMem_Calloc(files->count + 1, sizeof *files->paths);
    if (!files->directories || !files->paths) {
        PyErr_NoMemory();
        return -1;
    }
    for (Py_ssize_t i = 0; i < count; i++)
        if (files_add(files, fds, i))
            return -1;
    return 0;
}

static PyObject *results(const struct scanning *scanning, size_t count)
{
    const struct store_failure *failure = &scanning->failure;
    PyObject *failed = failure->error
                           ? Py_BuildValue("nis", (Py_ssize_t)failure->index, failure->error, failure->step)
                           : Py_NewRef(Py_None);

    return Py_BuildValue("y#y#y#y#Ni", (const char *)scanning->records,
                         (Py_ssize_t)(count * sizeof *scanning->records), (const char *)scanning->ids,
                         (Py_ssize_t)(scanning->digested * scanning->params.algorithm->digest_size),
                         (const char *)scanning->contents, (Py_ssize_t)scanning->contents_size,
                         (const char *)scanning->attributes, (Py_ssize_t)scanning->attributes_size, failed,
                         scanning->store ? (int)scanning->store->support : STORE_SUPPORT_UNKNOWN);
}

static PyObject *run_scanning(struct scanning *scanning, const struct files *files)
{
    PyObject *result = NULL;
    int status = -1;

    scanning->records = PyMem_Calloc(files->count + 1, sizeof *scanning->records);
    scanning->ids = PyMem_Malloc((files->count + 1) * scanning->params.algorithm->digest_size);
    scanning->contents = PyMem_Malloc((files->count + 1) * (scanning->inline_max + 1));
    scanning->attributes = PyMem_Malloc(ATTRIBUTES);
    scanning->attributes_room = ATTRIBUTES;
    if (scanning->records && scanning->ids && scanning->contents && scanning->attributes) {
        Py_BEGIN_ALLOW_THREADS
        status = scanning_run(scanning, files->directories, files->paths, files->count);
        Py_END_ALLOW_THREADS
    }
    result = status ? PyErr_NoMemory() : results(scanning, files->count);
    PyMem_Free(scanning->records);
    PyMem_Free(scanning->ids);
    PyMem_Free(scanning->contents);
    PyMem_Free(scanning->attributes);
    return result;
}

PyObject *core_scan_files(PyObject *module, PyObject *args)
{
    struct store_batch store = {.tmpfile = true};
    struct scanning scanning = {0};
    struct files files = {0};
    PyObject *fds, *names, *result = NULL;
    int number, verity, attributes;
    Py_ssize_t inline_max;

    (void)module;
    if (!PyArg_ParseTuple(args, "OOinpii:scan_files", &fds, &names, &number, &inline_max, &attributes, &store.objects,
                          &verity))
        return NULL;
    if (!verity_params_init(&store.params, number, NULL))
        return PyErr_Format(PyExc_ValueError, "there is no fs-verity hash algorithm with the number %d", number);
    if (verity < STORE_VERITY_NEVER || verity > STORE_VERITY_REQUIRE || inline_max < 0 || inline_max > INLINE_MAX)
        return PyErr_Format(PyExc_ValueError, "verity is 0, 1 or 2, and at most %d bytes are inline", INLINE_MAX);
    store.verity = (enum store_verity)verity;
    scanning.params = store.params;
    scanning.store = store.objects < 0 ? NULL : &store;
    scanning.inline_max = (size_t)inline_max;
    scanning.read_attributes = attributes != 0;
    if (files_acquire(&files, fds, names) == 0)
        result = run_scanning(&scanning, &files);
    files_release(&files);
    return result;
}
