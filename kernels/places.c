/* `places.signature` and `places.kinds`, compiled: as bytes, in a tenth of the time. */

#include <stdint.h>
#include <string.h>

#define Py_LIMITED_API 0x030B0000
#include <Python.h>

#include "exchange.h"

enum { MOST_ARGUMENTS = 16, MOST_TENSORS = 8, MOST_DIMS = 16 };
enum { HEAD = 5, WORDS = MOST_TENSORS * (HEAD + 2 * MOST_DIMS) };

static const Exchange *exchange;
static PyTypeObject *tensor_type, *parameter_type;
static PyObject *is_neg;

/* Writes one tensor's words. Returns their number, or 0 if it is not plain. */
static int describe(PyObject *tensor, int64_t *to) {
    Seen s;
    if (tensor == Py_None) {
        to[0] = -1;
        return 1;
    }
    if (Py_TYPE(tensor) != tensor_type && Py_TYPE(tensor) != parameter_type) return 0;
    if (exchange->see(tensor, &s)) { /* no strided memory: a meta or a sparse tensor */
        PyErr_Clear();
        return 0;
    }
    if (s.dims > MOST_DIMS || !s.strides) return 0;
    PyObject *negated = PyObject_CallMethodObjArgs(tensor, is_neg, NULL);
    Py_XDECREF(negated); /* of a bool, of which there are two */
    if (negated != Py_False) {
        PyErr_Clear();
        return 0;
    }
    to[0] = s.dims, to[1] = s.kind << 8 | s.bits, to[2] = s.lanes, to[3] = s.device, to[4] = s.device_index;
    memcpy(to + HEAD, s.shape, (size_t)s.dims * 8);
    memcpy(to + HEAD + s.dims, s.strides, (size_t)s.dims * 8);
    return HEAD + 2 * s.dims;
}

static PyObject *py_signature(PyObject *self, PyObject *const *args, Py_ssize_t n) {
    int64_t words[WORDS];
    int length = 0;
    (void)self;
    for (Py_ssize_t i = 0; i < n; i++) {
        int written = n > MOST_TENSORS ? 0 : describe(args[i], words + length);
        if (written == 0) return PyObject_CallNoArgs((PyObject *)&PyBaseObject_Type);
        length += written;
    }
    return PyBytes_FromStringAndSize((const char *)words, (Py_ssize_t)length * 8);
}

/* Of each tensor three bytes: whether its memory starts at a multiple of 16 bytes, and its dtype. */
static PyObject *py_kinds(PyObject *self, PyObject *const *args, Py_ssize_t n) {
    char found[3 * MOST_ARGUMENTS] = {0};
    (void)self;
    if (n > MOST_ARGUMENTS)
        return PyErr_Format(PyExc_TypeError, "expected %d tensors at most, got %zd", MOST_ARGUMENTS, n);
    for (Py_ssize_t i = 0; i < n; i++) {
        Seen s;
        if (args[i] == Py_None) continue;
        if (exchange->see(args[i], &s)) return NULL;
        int is_aligned = ((uintptr_t)s.data + s.offset) % 16 == 0;
        found[3 * i] = (char)(is_aligned ? 2 : 1), found[3 * i + 1] = (char)s.kind;
        found[3 * i + 2] = (char)s.bits;
    }
    return PyBytes_FromStringAndSize(found, 3 * n);
}

static PyMethodDef methods[] = {
    {"signature", (PyCFunction)(void (*)(void))py_signature, METH_FASTCALL, NULL},
    {"kinds", (PyCFunction)(void (*)(void))py_kinds, METH_FASTCALL, NULL},
    {NULL, NULL, 0, NULL}};

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "_places", NULL, -1, methods,
                                    NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__places(void) {
    PyObject *torch = PyImport_ImportModule("torch");
    PyObject *nn = torch ? PyObject_GetAttrString(torch, "nn") : NULL;
    is_neg = PyUnicode_InternFromString("is_neg");
    tensor_type = torch ? (PyTypeObject *)PyObject_GetAttrString(torch, "Tensor") : NULL;
    parameter_type = nn ? (PyTypeObject *)PyObject_GetAttrString(nn, "Parameter") : NULL;
    if (!is_neg || !tensor_type || !parameter_type) return NULL;
    if (!(exchange = exchange_of((PyObject *)tensor_type))) return NULL;
    return PyModule_Create(&module);
}
