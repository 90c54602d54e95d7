// Starts a .NET program in a process whose executable has any name: the runtime's own host refuses another one than "dotnet".
// arguments: the runtime's directory, the version, app.dll (with app.runtimeconfig.json beside it), the app's arguments
#include <dlfcn.h>
#include <stdio.h>

typedef int start(int, const char **, const char *, const char *, const char *);

int main(int count, char **arguments) {
    if (count < 4) return 2;
    char path[4096];
    snprintf(path, sizeof path, "%s/host/fxr/%s/libhostfxr.so", arguments[1], arguments[2]);
    void *library = dlopen(path, RTLD_NOW);
    if (!library) { fprintf(stderr, "%s\n", dlerror()); return 1; }
    start *run = (start *)dlsym(library, "hostfxr_main_startupinfo");
    if (!run) { fprintf(stderr, "%s\n", dlerror()); return 1; }
    const char *host = arguments[0], *root = arguments[1], *app = arguments[3];
    arguments[3] = arguments[0];
    return run(count - 3, (const char **)arguments + 3, host, root, app);
}
