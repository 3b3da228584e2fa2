/* Debian's crun knows version 1.0 of the OCI runtime spec and refuses the 1.3 that containerd writes, although the fields in
 * use are the same. This writes the older number into the bundle's config and becomes crun; it costs one more exec. */
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static void lower(const char *bundle)
{
	static char text[4096];
	char path[4096];
	snprintf(path, sizeof path, "%s/config.json", bundle);
	int fd = open(path, O_RDWR | O_CLOEXEC);
	if (fd < 0 || read(fd, text, sizeof text - 1) <= 0)
		return;
	char *found = strstr(text, "\"ociVersion\":\"1.3.0\"");
	if (found && pwrite(fd, "1.0.2", 5, found - text + 14) != 5)
		perror("lower the version of the spec");
	close(fd);
}

int main(int count, char **arguments)
{
	for (int i = 1; i + 1 < count; i++)
		if (!strcmp(arguments[i], "--bundle"))
			lower(arguments[i + 1]);
	execv(CRUN, arguments);
	perror(CRUN);
	return 127;
}
