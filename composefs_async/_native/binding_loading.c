/* The functions of composefs_async._native._core that read objects; see binding.c. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "binding.h"
#include "loading.h"

static PyObject *failures_of(const struct loading *loading)
{
    PyObject *list = PyList_New((Py_ssize_t)loading->failed);

    for (size_t i = 0; list && i < loading->failed; i++) {
        const struct loading_failure *failure = &loading->failures[i];
        Py_ssize_t width = failure->has_digest ? (Py_ssize_t)loading->params.algorithm->digest_size : 0;
        PyObject *each = Py_BuildValue("nisy#", (Py_ssize_t)failure->index, failure->error, failure->step,
                                       (const char *)failure->digest, width);
        if (!each || PyList_SetItem(list, (Py_ssize_t)i, each))
            Py_CLEAR(list);
    }
    return list;
}

/* The number of ids, or -1 with an exception. */
static Py_ssize_t count_of(const Py_buffer *ids, int number, struct verity_params *params)
{
    if (!verity_params_init(params, number, NULL)) {
        PyErr_Format(PyExc_ValueError, "there is no fs-verity hash algorithm with the number %d", number);
        return -1;
    }
    if (ids->len % (Py_ssize_t)params->algorithm->digest_size == 0)
        return ids->len / (Py_ssize_t)params->algorithm->digest_size;
    PyErr_Format(PyExc_ValueError, "%zd bytes are no ids of this algorithm", ids->len);
    return -1;
}

PyObject *core_object_sizes(PyObject *module, PyObject *args)
{
    struct verity_params params;
    PyObject *result = NULL;
    Py_ssize_t count;
    Py_buffer ids;
    int objects, number;

    (void)module;
    if (!PyArg_ParseTuple(args, "iy*i:object_sizes", &objects, &ids, &number))
        return NULL;
    count = count_of(&ids, number, &params);
    if (count >= 0)
        result = PyBytes_FromStringAndSize(NULL, count * (Py_ssize_t)sizeof(int64_t));
    if (result) {
        int64_t *sizes = (int64_t *)(void *)PyBytes_AsString(result);
        Py_BEGIN_ALLOW_THREADS
        loading_sizes(objects, ids.buf, (size_t)count, params.algorithm->digest_size, sizes);
        Py_END_ALLOW_THREADS
    }
    PyBuffer_Release(&ids);
    return result;
}

static PyObject *run_loading(struct loading *loading, const Py_buffer *ids, size_t count)
{
    PyObject *result = NULL;
    ptrdiff_t taken = -1;

    loading->sizes = PyMem_Calloc(count + 1, sizeof *loading->sizes);
    loading->failures = PyMem_Calloc(2 * count + 1, sizeof *loading->failures);
    if (loading->sizes && loading->failures) {
        Py_BEGIN_ALLOW_THREADS
        taken = loading_run(loading, ids->buf, count);
        Py_END_ALLOW_THREADS
    }
    if (taken < 0)
        PyErr_NoMemory();
    else
        result = Py_BuildValue("ny#N", (Py_ssize_t)taken, (const char *)loading->sizes,
                               (Py_ssize_t)((size_t)taken * sizeof *loading->sizes), failures_of(loading));
    PyMem_Free(loading->sizes);
    PyMem_Free(loading->failures);
    return result;
}

PyObject *core_load_objects(PyObject *module, PyObject *args)
{
    struct loading loading = {0};
    PyObject *result = NULL;
    Py_buffer ids, buffer;
    Py_ssize_t count;
    int number, measure;

    (void)module;
    if (!PyArg_ParseTuple(args, "iy*w*ip:load_objects", &loading.objects, &ids, &buffer, &number, &measure))
        return NULL;
    count = count_of(&ids, number, &loading.params);
    loading.measure = measure != 0;
    loading.buffer = buffer.buf;
    loading.capacity = (size_t)buffer.len;
    if (count >= 0)
        result = run_loading(&loading, &ids, (size_t)count);
    PyBuffer_Release(&buffer);
    PyBuffer_Release(&ids);
    return result;
}
