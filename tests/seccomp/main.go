// Prints containerd's default seccomp profile for several sets of capabilities, and the names of all system calls that the
// kernel has, as the JSON that our own profile is compared with (cri-server/src/container/spec/seccomp/tests.rs).
//
// The profile depends on what the program was built for, so it is built and run once for each architecture.
package main

import (
	"encoding/json"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/contrib/seccomp"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// The capabilities that the profile asks for, each alone, and the sets that containers usually have.
var sets = [][]string{
	{},
	{"CAP_AUDIT_WRITE", "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_MKNOD",
		"CAP_NET_BIND_SERVICE", "CAP_NET_RAW", "CAP_SETFCAP", "CAP_SETGID", "CAP_SETPCAP", "CAP_SETUID", "CAP_SYS_CHROOT"},
	{"CAP_BPF"},
	{"CAP_CHECKPOINT_RESTORE"},
	{"CAP_DAC_READ_SEARCH"},
	{"CAP_IPC_LOCK"},
	{"CAP_NET_ADMIN"},
	{"CAP_PERFMON"},
	{"CAP_SYSLOG"},
	{"CAP_SYS_ADMIN"},
	{"CAP_SYS_BOOT"},
	{"CAP_SYS_CHROOT"},
	{"CAP_SYS_MODULE"},
	{"CAP_SYS_NICE"},
	{"CAP_SYS_PACCT"},
	{"CAP_SYS_PTRACE"},
	{"CAP_SYS_RAWIO"},
	{"CAP_SYS_RESOURCE"},
	{"CAP_SYS_TIME"},
	{"CAP_SYS_TTY_CONFIG"},
	{"CAP_WAKE_ALARM"},
	{"CAP_SYS_ADMIN", "CAP_SYS_PTRACE", "CAP_SYS_TIME", "CAP_NET_ADMIN", "CAP_BPF", "CAP_PERFMON"},
}

// The ABIs that a kernel of an architecture serves, as golang.org/x/sys names them.
var abis = map[string][]string{"amd64": {"amd64", "386"}, "arm64": {"arm64", "arm"}}

type set struct {
	Capabilities []string             `json:"capabilities"`
	Rules        []specs.LinuxSyscall `json:"rules"`
}

type reference struct {
	Calls         []string                 `json:"calls"`
	DefaultAction specs.LinuxSeccompAction `json:"defaultAction"`
	Architectures []specs.Arch             `json:"architectures"`
	// What all sets begin with.
	Common []specs.LinuxSyscall `json:"common"`
	Sets   []set                `json:"sets"`
}

func main() {
	if len(os.Args) != 2 {
		fail("usage: %s DIRECTORY-OF-golang.org/x/sys", os.Args[0])
	}
	calls, err := calls(filepath.Join(os.Args[1], "unix"))
	if err != nil {
		fail("read names of system calls: %v", err)
	}
	out := reference{Calls: calls}
	for _, capabilities := range sets {
		spec := &specs.Spec{Process: &specs.Process{Capabilities: &specs.LinuxCapabilities{Bounding: capabilities}}}
		profile := seccomp.DefaultProfile(spec)
		out.DefaultAction, out.Architectures = profile.DefaultAction, profile.Architectures
		out.Sets = append(out.Sets, set{capabilities, profile.Syscalls})
	}
	for slices.IndexFunc(out.Sets, func(other set) bool {
		return len(other.Rules) == 0 || !reflect.DeepEqual(other.Rules[0], out.Sets[0].Rules[0])
	}) < 0 {
		out.Common = append(out.Common, out.Sets[0].Rules[0])
		for at := range out.Sets {
			out.Sets[at].Rules = out.Sets[at].Rules[1:]
		}
	}
	encoder := json.NewEncoder(os.Stdout)
	if err := encoder.Encode(out); err != nil {
		fail("print: %v", err)
	}
}

// The names of all system calls of the ABIs of this architecture.
func calls(directory string) ([]string, error) {
	names := map[string]bool{}
	for _, abi := range abis[runtime.GOARCH] {
		path := filepath.Join(directory, "zsysnum_linux_"+abi+".go")
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, 0)
		if err != nil {
			return nil, err
		}
		ast.Inspect(file, func(node ast.Node) bool {
			if value, is := node.(*ast.ValueSpec); is {
				if name, is := strings.CutPrefix(value.Names[0].Name, "SYS_"); is {
					names[strings.ToLower(name)] = true
				}
			}
			return true
		})
	}
	var sorted []string
	for name := range names {
		sorted = append(sorted, name)
	}
	slices.Sort(sorted)
	return sorted, nil
}

func fail(format string, arguments ...any) {
	fmt.Fprintf(os.Stderr, format+"\n", arguments...)
	os.Exit(1)
}
