// A client of a kubelet's own server, for tests: what an API server does with it for kubectl, by the same library.
//
//	client get PATH            prints what is there
//	client exec PATH           also attach; streams are those that the query asks for (input, output, error, tty)
//	client forward PATH PORTS  forwards ports of loopback, as LOCAL:REMOTE, until it is ended
//
// KUBELET is the server's address; WEBSOCKET makes exec and forward go over WebSocket and not SPDY.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/client-go/transport/spdy"
	"k8s.io/client-go/util/exec"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		var exit exec.CodeExitError
		if errors.As(err, &exit) {
			os.Exit(exit.Code)
		}
		fmt.Fprintln(os.Stderr, err)
		os.Exit(125)
	}
}

func run(arguments []string) error {
	if len(arguments) < 2 {
		return errors.New("usage: client get|exec|forward PATH [PORTS]")
	}
	// The kubelet signs its own certificate, and this talks to loopback only.
	config := &rest.Config{Host: os.Getenv("KUBELET"), TLSClientConfig: rest.TLSClientConfig{Insecure: true}}
	address, err := url.Parse(config.Host + arguments[1])
	if err != nil {
		return err
	}
	_, websocket := os.LookupEnv("WEBSOCKET")
	switch arguments[0] {
	case "get":
		return get(config, address)
	case "exec":
		return stream(config, address, websocket)
	case "forward":
		return forward(config, address, websocket, arguments[2:])
	default:
		return fmt.Errorf("unknown command %q", arguments[0])
	}
}

func get(config *rest.Config, address *url.URL) error {
	client, err := rest.HTTPClientFor(config)
	if err != nil {
		return err
	}
	response, err := client.Get(address.String())
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if _, err := io.Copy(os.Stdout, response.Body); err != nil {
		return err
	}
	if response.StatusCode != http.StatusOK {
		return errors.New(response.Status)
	}
	return nil
}

func stream(config *rest.Config, address *url.URL, websocket bool) error {
	executor, err := remotecommand.NewSPDYExecutor(config, "POST", address)
	if websocket {
		executor, err = remotecommand.NewWebSocketExecutor(config, "GET", address.String())
	}
	if err != nil {
		return err
	}
	asked := func(name string) bool { return address.Query().Get(name) == "1" }
	options := remotecommand.StreamOptions{Tty: asked("tty")}
	if asked("input") {
		options.Stdin = os.Stdin
	}
	if asked("output") {
		options.Stdout = os.Stdout
	}
	if asked("error") {
		options.Stderr = os.Stderr
	}
	return executor.StreamWithContext(context.Background(), options)
}

func forward(config *rest.Config, address *url.URL, websocket bool, ports []string) error {
	transport, upgrader, err := spdy.RoundTripperFor(config)
	if err != nil {
		return err
	}
	dialer := spdy.NewDialer(upgrader, &http.Client{Transport: transport}, "POST", address)
	if websocket {
		if dialer, err = portforward.NewSPDYOverWebsocketDialer(address, config); err != nil {
			return err
		}
	}
	forwarder, err := portforward.NewOnAddresses(dialer, []string{"127.0.0.1"}, ports, nil, nil, os.Stdout, os.Stderr)
	if err != nil {
		return err
	}
	return forwarder.ForwardPorts()
}
