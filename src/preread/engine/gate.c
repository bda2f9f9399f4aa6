/* The gate: llama.cpp's evaluation callback, in C so that it costs decoding nothing.
 *
 * llama.cpp calls it for every node of the compute graph, first with ask=true. While the gate is armed it asks to stop
 * after the nodes named "l_out-<layer>", that is, at the end of each layer; when such a node has been computed (ask=false)
 * it blocks until the next layer may be computed. Disarmed, it answers false at once and the graph runs in one piece.
 * A Python callback in this place costs about 0.5 ms a token; this one cannot be measured.
 *
 * Nothing of llama.cpp or Python is linked or included (a machine may lack Python.h): the one function needed,
 * ggml_get_name, is passed in as a pointer, and ctypes calls what is exported here.
 */
#define _POSIX_C_SOURCE 200809L
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

typedef const char *(*name_of)(const void *tensor);
typedef bool (*observer)(void *tensor, bool ask);
typedef void (*preparer)(void *tensor, void *with);

struct gate {
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    name_of name;
    observer observe; /* sees every node instead of the gate, while set: how the cache tensors are found */
    preparer prepare; /* is given every node before it is computed, while set: how attention.c takes its own */
    void *with;
    bool armed;
    bool cancelled;
    int open;    /* layers 0 .. open-1 may be computed */
    int waiting; /* the layer that the engine waits to compute, -1 when it does not wait */
};

static int layer_after(const char *name) {
    if (strncmp(name, "l_out-", 6) != 0) return -1;
    return atoi(name + 6) + 1;
}

struct gate *preread_gate_new(name_of name) {
    struct gate *gate = calloc(1, sizeof *gate);
    if (!gate) return NULL;
    pthread_mutex_init(&gate->mutex, NULL);
    pthread_cond_init(&gate->changed, NULL);
    gate->name = name;
    gate->waiting = -1;
    return gate;
}

void preread_gate_free(struct gate *gate) {
    if (!gate) return;
    pthread_cond_destroy(&gate->changed);
    pthread_mutex_destroy(&gate->mutex);
    free(gate);
}

/* Block until layer `layer` may be computed; false when cancelled. */
static bool wait_for(struct gate *gate, int layer) {
    pthread_mutex_lock(&gate->mutex);
    while (gate->armed && !gate->cancelled && gate->open <= layer) {
        gate->waiting = layer;
        pthread_cond_wait(&gate->changed, &gate->mutex);
    }
    gate->waiting = -1;
    bool go_on = !gate->cancelled;
    pthread_mutex_unlock(&gate->mutex);
    return go_on;
}

/* The callback itself: ggml_backend_sched_eval_callback. */
bool preread_gate_eval(void *tensor, bool ask, void *user_data) {
    struct gate *gate = user_data;
    if (ask && gate->prepare) gate->prepare(tensor, gate->with);
    if (gate->observe) return gate->observe(tensor, ask);
    if (!gate->armed) return false;
    int next = layer_after(gate->name(tensor));
    return ask ? next > 0 : wait_for(gate, next);
}

/* Called before the graph runs, for its first layer, which no node precedes. */
bool preread_gate_pass(struct gate *gate, int layer) { return wait_for(gate, layer); }

void preread_gate_observe(struct gate *gate, observer observe) { gate->observe = observe; }

void preread_gate_prepare(struct gate *gate, preparer prepare, void *with) {
    gate->with = with;
    gate->prepare = prepare;
}

static void change(struct gate *gate, bool armed, bool cancelled, int open) {
    pthread_mutex_lock(&gate->mutex);
    gate->armed = armed;
    gate->cancelled = cancelled;
    gate->open = open;
    pthread_cond_broadcast(&gate->changed);
    pthread_mutex_unlock(&gate->mutex);
}

void preread_gate_arm(struct gate *gate, int open) { change(gate, true, false, open); }
void preread_gate_disarm(struct gate *gate) { change(gate, false, false, 0); }

void preread_gate_open(struct gate *gate, int open) {
    pthread_mutex_lock(&gate->mutex);
    if (open > gate->open) gate->open = open;
    pthread_cond_broadcast(&gate->changed);
    pthread_mutex_unlock(&gate->mutex);
}

void preread_gate_cancel(struct gate *gate) {
    pthread_mutex_lock(&gate->mutex);
    gate->cancelled = true;
    pthread_cond_broadcast(&gate->changed);
    pthread_mutex_unlock(&gate->mutex);
}

int preread_gate_waiting(struct gate *gate) {
    pthread_mutex_lock(&gate->mutex);
    int waiting = gate->waiting;
    pthread_mutex_unlock(&gate->mutex);
    return waiting;
}

bool preread_gate_cancelled(struct gate *gate) {
    pthread_mutex_lock(&gate->mutex);
    bool cancelled = gate->cancelled;
    pthread_mutex_unlock(&gate->mutex);
    return cancelled;
}
